# The README's two commands: `make up` runs cloudagent from this clone, `make test` runs every check.
# Both bring what is missing: uv into .tools/, packages into .venv/, the built page.

UV := $(or $(shell command -v uv 2>/dev/null),.tools/bin/uv)
PAGE := backend/cloudagent_backend/_ui/index.html
PAGE_SOURCES := $(shell find backend/ui -type f -not -path '*/node_modules/*' 2>/dev/null)
RUN := $(UV) run --frozen --all-extras

.DEFAULT_GOAL := help
.PHONY: help up test check quick bench format clean

help:
	@echo 'make up            start the backend, the daemon on this machine, and the page'
	@echo 'make up DEMO=1     the same with a scripted model: no key, no coding agent needed'
	@echo 'make test          every check, as .ci/run calls it'
	@echo 'make quick         the fast tests only'
	@echo 'make bench         the benchmarks, each beside its reference'
	@echo 'make format        put the code in order'

up: $(UV) $(PAGE)
	@$(UV) sync --frozen --inexact --no-dev --extra backend --quiet
	@echo 'The commands of this clone are in .venv/bin; in another terminal, first:  . .venv/bin/activate'
	@$(UV) run --no-sync cloudagent up $(if $(DEMO),--demo)

test: $(UV) $(PAGE)
	@UV="$(UV)" sh tests/run.sh

check: $(UV)
	@UV="$(UV)" sh tests/run.sh check

quick: $(UV)
	@$(RUN) pytest -q -m 'not slow and not browser and not real_cli'

bench: $(UV) $(PAGE)
	@$(RUN) python -m benchmarks

format: $(UV)
	@$(RUN) ruff format
	@$(RUN) ruff check --fix

clean:
	rm -rf .venv .tools dist backend/ui/node_modules backend/cloudagent_backend/_ui

.tools/bin/uv:
	@echo 'fetching uv into .tools/ ...' >&2
	@python3 -m venv .tools 2>/dev/null || { rm -rf .tools; \
	  echo 'make: python3 cannot make a virtual environment on this machine' >&2; \
	  echo '      install it once:  sudo apt-get install python3-venv' >&2; exit 1; }
	@.tools/bin/python -m pip install --quiet --disable-pip-version-check 'uv>=0.9,<1'

# Built next to the package that serves it; node_modules is only needed for building.
$(PAGE): $(PAGE_SOURCES)
	@command -v npm >/dev/null || { echo 'make: npm is missing; the page needs Node 20 or newer to be built' >&2; exit 1; }
	@echo 'building the page ...' >&2
	@cd backend/ui && export NPM_CONFIG_UPDATE_NOTIFIER=false && npm ci --no-fund --no-audit --loglevel=error && npm run --silent build
	@touch $@
