# shellcheck shell=bash
# What the scripts of deploy/ share: how they speak, how they fail, and a cache that is filled
# once. Speech goes to stderr; stdout carries only the answer (a path, a word, a table).

TAMDAO_CACHE=${TAMDAO_CACHE:-/var/cache/tamdao}

say() { printf '%s\n' "$*" >&2; }

# fail WHAT [HINT]: says what failed and what to do, and ends the script.
fail() {
  printf 'error: %s\n' "$1" >&2
  [ -z "${2-}" ] || printf 'hint: %s\n' "$2" >&2
  exit 1
}

# step WHAT COMMAND...: runs the command silently and says how many seconds it took; when it
# fails, shows the end of what it printed. Call it as a plain statement (not in `if` or `||`),
# else bash ignores errors inside the command when that is a function.
step() {
  local what=$1 begin=$SECONDS log code
  shift
  log=$(mktemp)
  printf '  %s ... ' "$what" >&2
  set +e
  (set -e; "$@") >"$log" 2>&1 </dev/null
  code=$?
  set -e
  if [ "$code" = 0 ]; then
    printf '%s s\n' $((SECONDS - begin)) >&2
    rm -f "$log"
  else
    printf 'failed after %s s\n' $((SECONDS - begin)) >&2
    tail -n 25 "$log" >&2
    rm -f "$log"
    fail "\"$what\" failed with code $code" "${STEP_HINT:-read the lines above; running the script again is safe}"
  fi
}

need_root() {
  [ "$(id -u)" = 0 ] || fail "this needs root" "run it with sudo"
}

# need_commands COMMAND...: fails with the way to get them when one is missing.
need_commands() {
  local command missing=""
  for command in "$@"; do
    command -v "$command" >/dev/null || missing+=" $command"
  done
  [ -z "$missing" ] || fail "missing commands:$missing" "run deploy/install-packages"
}

# cached NAME KEY BUILD: prints the directory of NAME made by the recipe whose hash is KEY, and
# makes it first when it is not there: the function BUILD runs in an empty directory, which is
# renamed into place only when BUILD has ended well. Two callers at once: the second waits.
cached() {
  local name=$1 build=$3 home="$TAMDAO_CACHE/$1-$2" work lock code
  mkdir -p "$TAMDAO_CACHE" || fail "cannot make the cache $TAMDAO_CACHE" "set TAMDAO_CACHE to a directory you can write"
  exec {lock}>"$TAMDAO_CACHE/.$name.lock"
  flock "$lock"
  if [ ! -d "$home" ]; then
    say "$name: building into $home"
    # Held by the lock, so an older work directory was left by a build that was killed.
    rm -rf "$TAMDAO_CACHE/.$name".work.*
    work=$(mktemp -d "$TAMDAO_CACHE/.$name.work.XXXXXX")
    chmod 755 "$work"
    set +e
    (set -e; cd "$work"; "$build" {lock}>&-)
    code=$?
    set -e
    [ "$code" = 0 ] || { rm -rf "$work"; exit 1; }
    mv -T "$work" "$home"
    # Recipes that nobody has asked for in a month go.
    find "$TAMDAO_CACHE" -maxdepth 1 -type d -name "$name-*" -mtime +30 ! -path "$home" -exec rm -rf {} +
  fi
  touch "$home"
  exec {lock}>&-
  printf '%s\n' "$home"
}
