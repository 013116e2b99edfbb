# Run in an emulated host as `cargo xtask rig --icount` starts it, with two programs under /in: one of the commit before (1b62a9a), one with long zero extents anonymous.
set -e
cd /tmp
cat "$EMBER_BIN" "$EMBER_AGENT" "$EMBER_KERNEL" "$EMBER_ROOT_PYTHON" >/dev/null
cp /in/ember-old /in/ember-new /tmp/
./ember-new bake echo --config $EMBER_EXAMPLES/echo/ember.toml --root "$EMBER_ROOT_PYTHON" >/dev/null
i=0
while [ $i -lt 15 ]; do
  for w in old new; do
    usleep $((i * 533))
    ./ember-$w run echo --no-jail --event-text x --timing=json 2>&1 >/dev/null | sed "s/^/$w echo /"
  done
  i=$((i+1))
done
