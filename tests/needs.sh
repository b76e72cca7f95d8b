#!/bin/sh
# Brings what the tests need besides Python and node: Chromium, and the real coding agent from npm.
# Both are looked for first, so that a second run costs nothing.
set -eu
cd "$(dirname "$0")"

if ! command -v chromium >/dev/null; then
  if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    echo 'installing Chromium ...'
    apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq chromium >/dev/null
  else
    echo 'tests: the browser tests need Chromium:  sudo apt-get install chromium' >&2
    exit 1
  fi
fi

if [ ! -x e2e/clis/node_modules/.bin/claude ]; then
  echo 'installing the real coding agent for the end-to-end tests ...'
  (cd e2e/clis && npm ci --no-fund --no-audit --loglevel=error)
fi
