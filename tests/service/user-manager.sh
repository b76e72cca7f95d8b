#!/bin/bash
# A real `systemd --user` for a throw-away user, on any Linux where we are root: nothing outside of
# its own namespaces and its own control group is seen, changed or signalled.
#
#   user-manager.sh FOLDER USER UID [VISIBLE ...]
#
# FOLDER/home becomes /home/USER. VISIBLE are folders that the user must be able to read although a
# folder above them (/root, say) is closed. On its standard input it takes lines, and answers each:
#   login    starts the manager    -> `running`, or `failed` and why
#   logout   stops it, as logind does when a user without lingering has left    -> `gone`
# At the end of its input all is over. The user exists only in here: passwd(5) and group(5) are
# covered by copies with a line more.
set -eu

FOLDER=$1 NAME=$2 ID=$3
GROUP=${GROUP:-cloudagent-test-$$}

# --- outside: a control group of our own ---

join() {  # HIERARCHY: makes a group in it that the user may write to, and enters it
  mkdir "$1/$GROUP" && chown -R "$ID:$ID" "$1/$GROUP" && echo $$ > "$1/$GROUP/cgroup.procs"
}

leave() {  # once all other processes have gone
  for root in /sys/fs/cgroup /sys/fs/cgroup/unified /sys/fs/cgroup/systemd; do
    [ -d "$root/$GROUP" ] || continue
    echo $$ > "$root/cgroup.procs" 2>/dev/null || true
    for _ in $(seq 50); do  # a process that was killed takes a moment to leave
      find "$root/$GROUP" -depth -type d -exec rmdir {} + 2>/dev/null && break
      sleep 0.05
    done
  done
}

if [ "${INSIDE:-}" != 1 ]; then
  trap leave EXIT
  if [ -f /sys/fs/cgroup/cgroup.controllers ]; then join /sys/fs/cgroup; fi
  for root in /sys/fs/cgroup/unified /sys/fs/cgroup/systemd; do
    if [ -d $root ]; then join $root; fi
  done 2>/dev/null || OWN_CGROUPS=1
  [ -d /sys/fs/cgroup/systemd ] || [ -f /sys/fs/cgroup/cgroup.controllers ] || OWN_CGROUPS=1
  export GROUP INSIDE=1 OWN_CGROUPS=${OWN_CGROUPS:-}
  unshare --mount --pid --fork --kill-child --propagation private "$0" "$@"
  exit
fi

# --- inside: a machine that looks as if systemd had booted it ---

mount -t proc proc /proc
if [ -n "$OWN_CGROUPS" ]; then  # none is mounted, or we may not write there: one that only we see
  mount -t cgroup2 none /sys/fs/cgroup
  join /sys/fs/cgroup
fi
mount -t tmpfs -o mode=755 tmpfs /run/systemd && mkdir -p /run/systemd/system  # sd_booted(3)
mount -t tmpfs -o mode=755 tmpfs /run/user && install -d -m 700 -o "$ID" -g "$ID" "/run/user/$ID"
mount -t tmpfs -o mode=755 tmpfs /var/lib/systemd && mkdir /var/lib/systemd/linger

scratch=/run/systemd/test
mkdir $scratch
for list in passwd group; do
  cp /etc/$list $scratch/$list
  mount --bind $scratch/$list /etc/$list
done
echo "$NAME:x:$ID:$ID::/home/$NAME:/bin/bash" >> /etc/passwd
echo "$NAME:x:$ID:" >> /etc/group

chown -R "$ID:$ID" "$FOLDER/home"
mkdir $scratch/home && mount --bind "$FOLDER/home" $scratch/home
for path in "${@:4}"; do  # aside, before anything is covered
  mkdir -p "$scratch/visible$path" && mount --bind "$path" "$scratch/visible$path"
done
mount -t tmpfs -o mode=755 tmpfs /home && mkdir "/home/$NAME" && mount --bind $scratch/home "/home/$NAME"
for path in "${@:4}"; do
  above=/
  IFS=/ read -ra parts <<< "${path#/}"
  for part in "${parts[@]}"; do
    above=${above%/}/$part
    [ -d "$above" ] || mkdir -p "$above"
    if ! setpriv --reuid="$ID" --regid="$ID" --clear-groups test -x "$above"; then
      mount -t tmpfs -o mode=755 tmpfs "$above"
    fi
  done
  if ! mountpoint -q "$path"; then mount --bind "$scratch/visible$path" "$path"; fi
done

as_user() {
  setpriv --reuid="$ID" --regid="$ID" --clear-groups env -i HOME="/home/$NAME" USER="$NAME" LOGNAME="$NAME" \
    SHELL=/bin/bash PATH=/usr/local/bin:/usr/bin:/bin LANG=C.UTF-8 XDG_RUNTIME_DIR="/run/user/$ID" "$@"
}

login() {
  as_user /lib/systemd/systemd --user --log-target=console --log-level=notice 2>> "$FOLDER/manager.log" &
  manager=$!
  for _ in $(seq 100); do
    state=$(as_user systemctl --user is-system-running 2>&1) || true
    case $state in running|degraded) echo running; return ;; esac
    kill -0 $manager 2>/dev/null || break
    sleep 0.1
  done
  echo "failed: $state; $(tail -3 "$FOLDER/manager.log" | tr '\n' ' ')"
}

cd /
while read -r order; do
  case $order in
    login) login ;;
    logout) as_user systemctl --user exit || kill $manager; wait $manager || true; echo gone ;;
  esac
done
disown -a
kill -9 -1 2>/dev/null || true  # all but this one, which is the first of its pid namespace
[ -z "$OWN_CGROUPS" ] || leave
