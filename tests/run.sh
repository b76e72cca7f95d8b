#!/bin/sh
# Every check, in the order in which a failure is cheapest; stops at the first. Called by `make test`.
#   tests/run.sh          all of it
#   tests/run.sh check    format, lint, types and layers only
set -eu
UV=${UV:-uv}
# Else each of the processes below compiles all that it imports and rewrites all tests: 5 s of CPU each.
unset PYTHONDONTWRITEBYTECODE
run() { "$UV" run --frozen --all-extras "$@"; }
step() { printf '\n=== %s\n' "$1"; }
how() { printf '\n%s\n' "$1" >&2; exit 1; }

step 'lock file and packages'
"$UV" lock --check || how 'uv.lock is out of date: run  uv lock'
"$UV" sync --frozen --all-extras --quiet

step 'format, lint, types, layers'
run ruff format --check || how 'fix it with  make format'
run ruff check || how 'fix what can be fixed with  make format'
run pyright || how 'pyright found type errors (strict)'
run lint-imports --no-cache || how 'an import goes against the layers: docs/architecture.md, "Layers"'
[ "${1:-all}" = check ] && exit 0

step 'what the tests need'
sh tests/needs.sh machine

step 'the page: types and reducer'
(cd backend/ui && { [ -d node_modules ] || npm ci --no-fund --no-audit --loglevel=error; } && npm run --silent check && npm test --silent)

step 'rules at 100 % coverage'
run coverage erase
run coverage run --rcfile=tests/rules.coveragerc -m pytest -q -p no:cacheprovider tests/protocol tests/backend/test_states.py tests/daemon/test_outcome.py
run coverage report --rcfile=tests/rules.coveragerc --fail-under=100

step 'wheel, light install'
sh tests/packaging.sh

step 'tests, in six parts at once'
# They wait for processes and clocks more than they compute: together they take little more than the longest.
parts=$(mktemp -d)
trap 'rm -rf "$parts"' EXIT
tests() { run pytest -q -p no:cacheprovider "$@"; }
part() { # NAME FOLDER...: beside the others; what it says is shown at the end
  name=$1; shift
  { tests "$@" && touch "$parts/$name-passed"; } >"$parts/$name" 2>&1 &
}
{ sh tests/needs.sh agents && tests tests/e2e -m real_cli && touch "$parts/agents-passed"; } >"$parts/agents" 2>&1 &
part pages tests/e2e -m 'not real_cli'
part machines tests/faults tests/service
part drivers tests/contracts tests/architecture tests/client
part backend tests/backend
# Whatever is in none of these, as it goes.
tests --ignore=tests/e2e --ignore=tests/faults --ignore=tests/service --ignore=tests/contracts --ignore=tests/architecture \
  --ignore=tests/backend --ignore=tests/client --ignore=tests/protocol && touch "$parts/rest-passed" || true
wait
for name in agents pages machines drivers backend; do printf '\n--- %s\n' "$name"; cat "$parts/$name"; done
for name in rest agents pages machines drivers backend; do
  [ -e "$parts/$name-passed" ] || how "a test failed ($name), see above"
done

printf '\nall checks passed\n'
