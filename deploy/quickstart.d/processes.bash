# shellcheck shell=bash
# Processes that outlive the script, known by id and start time, and waiting with a count of seconds.
# shellcheck disable=SC2154 # the variables are the quickstart's

section() { say "" && say "$1"; }

# started_at PID: when it started, in clock ticks; tells a process from a later one with its id.
started_at() { sed 's/.*) //' "/proc/$1/stat" 2>/dev/null | cut -d ' ' -f 20; }

# running HOME: prints the id of the process whose pid file is in HOME; fails when it does not run.
running() {
  local pid started
  read -r pid started 2>/dev/null <"$1/pid" || return 1
  [ -n "$started" ] && [ "$(started_at "$pid")" = "$started" ] && printf '%s\n' "$pid"
}

# launch HOME COMMAND...: starts a process of its own session; its output goes to HOME/log.
launch() {
  local home=$1
  shift
  setsid "$@" >>"$home/log" 2>&1 </dev/null &
  printf '%s %s\n' $! "$(started_at $!)" >"$home/pid"
}

# halt HOME WHAT [CHILD]: ends the process by TERM, after 20 s by KILL. With CHILD the signal goes to
# the process's children, for which it only waits.
halt() {
  local pid target
  if pid=$(running "$1"); then
    target=$pid
    [ -z "${3-}" ] || target=$(pgrep -P "$pid" || echo "$pid")
    # shellcheck disable=SC2086 # words
    kill $target 2>/dev/null || true
    for _ in $(seq 200); do
      running "$1" >/dev/null || break
      sleep 0.1
    done
    if running "$1" >/dev/null; then
      say "  $2 does not end by itself after 20 s and is killed"
      # shellcheck disable=SC2086
      kill -KILL $target "$pid" 2>/dev/null || true
    else
      say "  $2 has ended"
    fi
  fi
  rm -f "$1/pid"
}

# wait_for WHAT SECONDS LOG COMMAND...: tries the command until it succeeds; counts the seconds. When
# time is over, shows what the command said last and the end of LOG.
wait_for() {
  local what=$1 patience=$2 log=$3 begin=$SECONDS said
  shift 3
  printf '  %s ... ' "$what" >&2
  while ! said=$("$@" 2>&1); do
    if [ $((SECONDS - begin)) -ge "$patience" ]; then
      say "not after $patience s"
      [ -z "$said" ] || say "$said"
      if [ -e "$log" ]; then
        say "the end of $log:"
        tail -n 20 "$log" >&2
      fi
      fail "$what: not after $patience s" "read the lines above; \`$0 status\` says what runs; running \`$0\` again is safe"
    fi
    [ ! -t 2 ] || printf '\r  %s ... %s s ' "$what" $((SECONDS - begin)) >&2
    sleep 0.5
  done
  [ ! -t 2 ] || printf '\r  %s ... ' "$what" >&2
  printf '%s s\n' $((SECONDS - begin)) >&2
}

program() { printf '%s/%s\n' "${programs:-${CARGO_TARGET_DIR:-$root/target}/release}" "$1"; }

# cloud ARGUMENT...: the CLI in the quickstart's own context.
cloud() { "$(program tamdao)" --context "$context" "$@"; }
