#!/bin/sh
# Brings what the tests need besides Python and node: Chromium, a systemd for users, and the real
# coding agent from npm. All are looked for first, so that a second run costs nothing.
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

if [ "$(uname)" = Linux ] && ! { [ -x /lib/systemd/systemd ] && [ -e /usr/lib/systemd/user/dbus.socket ]; }; then
  if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    echo 'installing systemd, to run one for a user ...'
    apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq systemd dbus-user-session >/dev/null
  elif [ -n "${CI:-}" ]; then
    echo 'tests: the tests of the service need root on Linux, and  apt-get install systemd dbus-user-session' >&2
    exit 1
  fi
fi

if [ ! -x e2e/clis/node_modules/.bin/claude ]; then
  echo 'installing the real coding agent for the end-to-end tests ...'
  (cd e2e/clis && npm ci --no-fund --no-audit --loglevel=error)
fi

# What tests/e2e/test_real_drivers.py drives besides, at the versions that it was seen with. The others
# (opencode, gemini, qwen: 0.5 GB, and seconds of CPU for each start) are for a round of their own.
# No `npm ci`: it gives up where a registry lacks a package for another system that the program never needs here.
for cli in ${REAL_CLIS-codex}; do
  if [ -f "e2e/clis/$cli/package.json" ] && [ ! -d "e2e/clis/$cli/node_modules" ]; then
    echo "installing $cli for the end-to-end tests ..."
    (cd "e2e/clis/$cli" && npm install --no-save --no-fund --no-audit --loglevel=error)
  fi
done
