# shellcheck shell=bash
# Names, options and marks of a testbed, for `node` and `network`.
# shellcheck disable=SC2034 # the variables are theirs

prefix=${TAMDAO_TESTBED_PREFIX:-td}
dir=${TAMDAO_TESTBED_DIR:-}
bridge="" address="" uuid="" gateway="" purge=""
words=()

# parse ARGUMENT...: sets the variables above; what is no option, and all after --, is in words.
parse() {
  while [ $# -gt 0 ]; do
    case $1 in
    --prefix | --dir | --bridge | --address | --uuid | --gateway)
      [ $# -ge 2 ] || fail "$1 needs a value" "see the top of $0"
      printf -v "${1#--}" %s "$2"
      shift
      ;;
    --purge) purge=yes ;;
    --) shift && words+=("$@") && break ;;
    -*) fail "unknown option $1" "see the top of $0" ;;
    *) words+=("$1") ;;
    esac
    shift
  done
  check_name "$prefix" 12 prefix
  mark="tamdao-testbed $prefix"
  [ -z "$dir" ] || dir=$(realpath -m "$dir")
}

# check_name VALUE LENGTH WHAT
check_name() {
  [[ $1 =~ ^[a-z0-9]([a-z0-9-]*[a-z0-9])?$ ]] && [[ $1 != *--* ]] && [ ${#1} -le "$2" ] ||
    fail "\"$1\" is not a good $3" "use at most $2 lower case letters, digits and single inner hyphens"
}

mark_of() { cat "/sys/class/net/$1/ifalias" 2>/dev/null; }

# marked_links: this testbed's links on the host (its bridges, and the nodes' ends of the veths).
marked_links() {
  local link
  for link in /sys/class/net/*; do
    [ "$(cat "$link/ifalias" 2>/dev/null)" != "$mark" ] || printf '%s\n' "${link##*/}"
  done
}

# node_names: the nodes of this testbed, by network namespace and by directory.
node_names() {
  {
    ip netns list | awk -v prefix="$prefix--" 'index($1, prefix) == 1 { print substr($1, length(prefix) + 1) }'
    [ -z "$dir" ] || find "$dir" -mindepth 2 -maxdepth 2 -name .tamdao-node -printf '%h\n' 2>/dev/null | sed 's|.*/||'
  } | sort -u
}
