# Sourced behind place.sh by the scripts that measure `ember serve`: a daemon, and what it and its clones hold.

daemon=
stop() {
    if [ -n "$daemon" ]; then
        kill "$daemon" && wait "$daemon" || true
    fi
    daemon=
}
# A second daemon of a script's own, to be ended with it.
other=
trap 'stop; [ -z "$other" ] || kill "$other"; rm -rf "$place"' EXIT

cp "$BENCH_TOOLS/caller" "$place"
socket=$place/socket
caller=$place/caller

# As root nothing may be lacking of the jail; others measure as much of it as they get.
whole=
[ "$(id -u)" != 0 ] || whole=--require-jail

serve() { # FLAG...
    "$ember" serve --socket "$socket" $whole "$@" &
    daemon=$!
    until [ -S "$socket" ]; do sleep 0.05; done
}

# register NAME BUNDLE SETTINGS: with more members of the JSON object.
register() {
    curl --silent --show-error --fail-with-body --unix-socket "$socket" -X PUT "http://ember/functions/$1" \
        -d "{\"bundle\": \"$place/$2\", $3}" >/dev/null
}

children() { # PROCESS
    grep -l "^PPid:[[:space:]]*$1\$" /proc/[0-9]*/status 2>/dev/null | cut -d / -f 3
}

# Shells and clones: the children of the daemon's one child.
machines() { children "$(children "$daemon")"; }

# Of each clone in KiB: its proportional share of memory, its page tables, and of the guest's memory what is its own. A shell that waits has
# none: whether there is one at the end depends on when the last was taken.
machine_memory() {
    for process in $(machines); do
        awk -v tables="$(sed -n 's/^VmPTE:[[:space:]]*\([0-9]*\) kB/\1/p' "/proc/$process/status")" '
            /^[0-9a-f]+-[0-9a-f]+ / { guest = /\/memory( \(deleted\))?$/ }
            /^Pss:/ { pss += $2 }
            /^Private_Dirty:/ && guest { own += $2 }
            END { if (own != "") print pss, tables, own }' "/proc/$process/smaps"
    done
}

# density NAME BUNDLE CLONES: what idle clones take, each of which has answered and waits for another event. Each is of a function of its
# own, all of the same bundle: a function's next event would get the clone that waits, and one that asks for a fresh one keeps none.
density() {
    function=0
    while [ "$function" -lt $(($3 + 2)) ]; do
        register "kept-$function" "$2" '"reuse": 2, "concurrency": 1, "keep_ms": 86400000, "shells": 1'
        function=$((function + 1))
    done
    "$caller" "$socket" kept keep 2 0
    sleep 2
    cat /proc/meminfo >"$OUT/$1-before"
    "$caller" "$socket" kept keep "$3" 2
    sleep 10
    cat /proc/meminfo >"$OUT/$1-after"
    echo "$3" >"$OUT/$1-clones"
    machine_memory >"$OUT/$1-machines"
}
