t() { name=$1; shift; read s _ </proc/uptime; "$@" >/tmp/out 2>/tmp/err </dev/null || { echo failed; tail -5 /tmp/err; }; read e _ </proc/uptime; awk "BEGIN{printf \"%-10s %.2f\n\", \"$name\", $e-$s}"; }
cat /sys/kernel/mm/transparent_hugepage/enabled /sys/kernel/mm/transparent_hugepage/defrag
t bake ember bake /tmp/b --config $EMBER_EXAMPLES/lambda/ember.toml --root $EMBER_ROOT_PYTHON
for i in 1 2 3; do
t rebake ember run /tmp/b --bake-to /tmp/c --force --timing --event-json '{"name":"A"}'
grep -E "warm point|write the|page faults|MiB of" /tmp/err
done
du -m /tmp/c/memory
