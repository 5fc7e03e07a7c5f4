"""Programs that benchmarks run in processes of their own. `peer_*.py` import nothing of Tidings: they see the peers' packages only."""
