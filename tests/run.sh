#!/bin/sh
# Every check, in the order in which a failure is cheapest; stops at the first. Called by `make test`.
#   tests/run.sh          all of it
#   tests/run.sh check    format, lint, types and layers only
set -eu
UV=${UV:-uv}
# Else each of the processes below compiles all that it imports and rewrites all tests: 5 s of CPU each.
unset PYTHONDONTWRITEBYTECODE
run() { "$UV" run --frozen --all-extras "$@"; }
tests() { run pytest -q -p no:cacheprovider "$@"; }
step() { printf '\n=== %s\n' "$1"; }
how() { printf '\n%s\n' "$1" >&2; exit 1; }

parts=$(mktemp -d)
trap 'rm -rf "$parts"' EXIT
part() { # NAME COMMAND...: beside the others; what it says is shown at the end. A function is a chain of &&: no `set -e` here
  name=$1; shift
  { "$@" && touch "$parts/$name-passed"; } >"$parts/$name" 2>&1 &
}
passed() { # NAME...: waits for the parts, shows them, and stops if one failed
  wait
  failed=
  for name in "$@"; do
    printf '\n--- %s\n' "$name"; cat "$parts/$name"
    [ -e "$parts/$name-passed" ] || failed="$failed $name"
  done
  [ -z "$failed" ] || how "failed, see above:$failed"
}

types() { run pyright || { echo 'pyright found type errors (strict)'; false; }; }
page() { (cd backend/ui && { [ -d node_modules ] || npm ci --no-fund --no-audit --loglevel=error; } && npm run --silent check && npm test --silent); }
rules() { # at 100 % coverage
  run coverage erase &&
    run coverage run --rcfile=tests/rules.coveragerc -m pytest -q -p no:cacheprovider tests/protocol tests/backend/test_states.py tests/daemon/test_outcome.py &&
    run coverage report --rcfile=tests/rules.coveragerc --fail-under=100
}
# One after the other: where the page is not built yet, the wheel fills the same node_modules.
page_and_wheel() { page && sh tests/packaging.sh; }
agents() { sh tests/needs.sh agents && tests tests/e2e -m real_cli; }

step 'lock file and packages'
"$UV" lock --check || how 'uv.lock is out of date: run  uv lock'
"$UV" sync --frozen --all-extras --quiet

step 'format, lint, layers'
run ruff format --check || how 'fix it with  make format'
run ruff check || how 'fix what can be fixed with  make format'
run lint-imports --no-cache || how 'an import goes against the layers: docs/architecture.md, "Layers"'

if [ "${1:-all}" = check ]; then
  step 'types'
  types
  exit 0
fi

step 'what the tests need'
sh tests/needs.sh machine

step 'types; rules at 100 % coverage; the page, and the wheel with it in a light install; at once'
part types types
part rules rules
part page-and-wheel page_and_wheel
passed types rules page-and-wheel

step 'tests, in six parts at once'
# They wait for processes and clocks more than they compute: together they take little more than the longest.
part agents agents
part pages tests tests/e2e -m 'not real_cli'
part machines tests tests/faults tests/service
part drivers tests tests/contracts tests/architecture tests/client
part backend tests tests/backend
# Whatever is in none of these, as it goes.
echo 'shown before the others' >"$parts/rest"
tests --ignore=tests/e2e --ignore=tests/faults --ignore=tests/service --ignore=tests/contracts --ignore=tests/architecture \
  --ignore=tests/backend --ignore=tests/client --ignore=tests/protocol && touch "$parts/rest-passed" || true
passed rest agents pages machines drivers backend

printf '\nall checks passed\n'
