# Every target sets up what it needs first (scripts/setup: a no-op when nothing changed). Needs Python 3.11 and git.
PYTHON := .venv/bin/python
CODE := $(foreach folder,src apps benchmarks examples servers tests,$(if $(shell find $(folder) -name '*.py' -print -quit 2>/dev/null),$(folder)))

.DEFAULT_GOAL := help
.PHONY: help setup test demo demo-saga demo-services compare bench soak sabotage lint format docs lock clean

help: ## what can be made
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: ## .venv with everything, from the hashed locks
	@scripts/setup

test: setup ## the tests, in JOBS processes (2 unless given); ends with the list of promises left untested
	$(PYTHON) -m pytest --numprocesses $(or $(JOBS),2) --dist worksteal $(ARGS)

demo: setup ## the checkout application, live; ORDERS=path.csv reads real orders, STORE=path keeps the store, STORE=postgres or a URL puts it on a server
	$(PYTHON) -m apps.checkout.demo $(if $(ORDERS),--orders "$(ORDERS)") $(if $(STORE),--store "$(STORE)") $(ARGS)

demo-saga: setup ## the same shop's orders as sagas: workers killed, a bank that is closed, compensations stuck and retried by hand; ORDERS= and STORE= as above
	$(PYTHON) -m apps.checkout.saga_demo $(if $(ORDERS),--orders "$(ORDERS)") $(if $(STORE),--store "$(STORE)") $(ARGS)

demo-services: setup ## the checkout as services of their own, on a PostgreSQL with a database each and a Kafka between them; ORDERS=path.csv as above
	$(PYTHON) -m apps.checkout.services $(if $(ORDERS),--orders "$(ORDERS)") $(ARGS)

compare: setup ## the same shop, event-driven against request-response
	$(PYTHON) -m apps.checkout.compare $(if $(ORDERS),--orders "$(ORDERS)") $(ARGS)

bench: setup ## every path against its raw loop and the peers, in one run
	@scripts/setup peers
	$(PYTHON) -m benchmarks $(ARGS)

soak: setup ## a hundred writers on PostgreSQL, then workers, sagas, relays and intakes killed and frozen at random; SEEDS=n runs n seeds
	$(PYTHON) -m tests.storm.horizon --seeds $(or $(SEEDS),3) --writers 100 --seconds 10
	$(PYTHON) -m tests.soak --seeds $(or $(SEEDS),3) $(ARGS)
	TIDINGS_KILL_POINTS=all $(PYTHON) -m pytest --numprocesses $(or $(JOBS),2) -q tests/sagas/test_killed.py
	$(PYTHON) -m tests.storm.sagas --seeds $(or $(SEEDS),3)
	$(PYTHON) -m tests.storm.relays --seeds $(or $(SEEDS),3) --kills 8 --freezes 3
	$(PYTHON) -m tests.storm.intakes --seeds $(or $(SEEDS),3) --seconds 20

sabotage: setup ## takes out each guarded mechanism in turn: the test that guards it must fail
	$(PYTHON) -m tests.sabotage $(ARGS)

lint: setup ## ruff and mypy
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m mypy $(CODE)

format: setup ## let ruff put the code in order
	$(PYTHON) -m ruff check --fix .
	$(PYTHON) -m ruff format .

docs: setup ## the documentation into site/; a broken link is an error
	$(PYTHON) -m zensical build --clean --strict

lock: setup ## write the hashed locks again; ARGS=--upgrade takes newer versions
	scripts/lock $(ARGS)

clean: ## remove what was built, not .venv
	rm -rf build dist site var .cache .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find $(CODE) scripts -name __pycache__ -type d -prune -exec rm -rf {} +
