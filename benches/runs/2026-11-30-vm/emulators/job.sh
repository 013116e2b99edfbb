t() { name=$1; shift; read s _ </proc/uptime; "$@" >/tmp/out 2>/tmp/err </dev/null || { echo failed; tail -5 /tmp/err; }; read e _ </proc/uptime; awk "BEGIN{printf \"%-10s %.2f\n\", \"$name\", $e-$s}"; }
t bake ember bake /tmp/b --config $EMBER_EXAMPLES/lambda/ember.toml --root $EMBER_ROOT_PYTHON
grep . /tmp/out | tail -12
t run20 ember run /tmp/b --count 20 --event-json '{"name":"A"}'
t rebake ember run /tmp/b --bake-to /tmp/c --timing --event-json '{"name":"A"}'
cat /tmp/err
t cold ember run /tmp/b --cold --event-json '{"name":"A"}'
