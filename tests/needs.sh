#!/bin/sh
# Brings what the tests need besides Python and node. All is looked for first, so that a second run costs nothing.
#   tests/needs.sh           all of it
#   tests/needs.sh machine   Chromium, and a systemd for users
#   tests/needs.sh agents    the real coding agents from npm (0.7 GB)
set -eu
cd "$(dirname "$0")"

machine() {
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
}

agents() {
  if [ ! -x e2e/clis/node_modules/.bin/claude ]; then
    echo 'installing claude for the end-to-end tests ...'
    (cd e2e/clis && npm ci --no-fund --no-audit --loglevel=error)
  fi

  # What tests/e2e/test_real_drivers.py drives besides, at the versions that it was seen with.
  # No `npm ci`: it gives up where a registry lacks a package for another system that the program never needs here.
  for cli in ${REAL_CLIS-codex opencode gemini qwen}; do
    if [ -f "e2e/clis/$cli/package.json" ] && [ ! -d "e2e/clis/$cli/node_modules" ]; then
      echo "installing $cli for the end-to-end tests ..."
      (cd "e2e/clis/$cli" && npm install --no-save --no-fund --no-audit --loglevel=error)
    fi
  done
}

case ${1:-all} in
  machine) machine ;;
  agents) agents ;;
  *) machine; agents ;;
esac
