"""Real servers, for tests, demonstrations and benchmarks: each started on this machine, without root or containers, and ended again.

``postgres`` and ``pgbouncer`` are the servers, ``folder`` is where they live, ``debian`` gets what only Debian has.
"""
