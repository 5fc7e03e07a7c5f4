"""Real servers, for tests, demonstrations and benchmarks: each started on this machine, without root or containers, and ended again.

``postgres``, ``pgbouncer`` and ``kafka`` are the servers, ``folder`` is where they live; ``debian`` and ``maven`` get what is not on PyPI.
"""
