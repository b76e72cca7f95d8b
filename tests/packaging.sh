#!/bin/sh
# Builds the distribution, opens the wheel, and installs it without extras into an empty
# environment: every daemon module must import there, and the commands must answer.
set -eu
UV=${UV:-uv}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

"$UV" build --quiet --out-dir "$work/dist"
"$UV" venv --quiet "$work/env"
"$UV" pip install --quiet --python "$work/env" "$work"/dist/*.whl
"$work/env/bin/python" - "$work"/dist/*.whl <<'PY'
import sys
import zipfile

names = zipfile.ZipFile(sys.argv[1]).namelist()
assert "cloudagent_backend/_ui/index.html" in names, "the wheel has no page"
assert any(n.startswith("cloudagent_backend/_ui/assets/") and n.endswith(".js") for n in names)
assert len(names) == len(set(names)), "the wheel holds a file twice"
PY
"$work/env/bin/python" -I - <<'PY'
import importlib
import importlib.util
import pkgutil

heavy = [name for name in ("fastapi", "argon2", "prometheus_client") if importlib.util.find_spec(name)]
assert not heavy, f"the light install brought {heavy}"
for package in ("cloudagent_protocol", "cloudagent", "cloudagent_daemon"):
    root = importlib.import_module(package)
    for module in pkgutil.walk_packages(root.__path__, f"{package}."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
print("every light module imports")
PY
"$work/env/bin/cloudagent-daemon" --help >/dev/null
"$work/env/bin/cloudagent" --help >/dev/null
code=0; "$work/env/bin/cloudagent-backend" serve >/dev/null 2>"$work/err" || code=$?
[ "$code" = 2 ] && grep -q 'cloudagent-daemon\[backend\]' "$work/err" || {
  echo "cloudagent-backend without its extra: exit $code, said:"; cat "$work/err"; exit 1; }
echo 'light install works'
