"""A storm: real publishers and workers on one file, killed and frozen at random, and then a count of everything.

``service`` is what they run, ``worker`` and ``publisher`` are the processes, ``phases`` tells where a kill landed, ``storm`` does the
killing, ``verdict`` counts. ``tests/soak.py`` runs it by hand and in CI, ``tests/test_promises_processes.py`` a short one.

``horizon`` is another storm, over PostgreSQL's log; ``make soak`` runs it with a hundred writers, ``test_horizon.py`` a short one.
"""
