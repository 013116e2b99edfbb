set -e
cp $EMBER_BIN $EMBER_AGENT /tmp/; export EMBER_AGENT=/tmp/ember-agent
for w in plain iof; do
  extra=""; [ $w = iof ] && extra="--kernel-args init_on_free=1"
  /tmp/ember bake /tmp/$w --config $EMBER_EXAMPLES/echo/ember.toml --root $EMBER_ROOT_PYTHON $extra --json > /out/bake-$w.json 2>/out/bake-$w.err || { cat /out/bake-$w.err; exit 1; }
  /tmp/ember inspect /tmp/$w --json > /out/inspect-$w.json
  du -k /tmp/$w/memory
done
for i in 1 2 3 4 5 6 7; do for w in plain iof; do
  /tmp/ember run /tmp/$w --no-jail --event-text hello --timing=json 2>>/out/warm-$w.jsonl >/dev/null
done; done
for i in 1 2 3; do for w in plain iof; do
  /tmp/ember run /tmp/$w --no-jail --event-text hello --cold --timing=json 2>>/out/cold-$w.jsonl >/dev/null
done; done
ls -la /out
