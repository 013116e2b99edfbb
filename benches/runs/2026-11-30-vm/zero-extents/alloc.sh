set -e
cd /tmp
cat "$EMBER_BIN" "$EMBER_AGENT" "$EMBER_KERNEL" "$EMBER_ROOT_PYTHON" >/dev/null
cp /in/ember-old /in/ember-new /tmp/
./ember-new bake p --root "$EMBER_ROOT_PYTHON" --memory 256MiB --warm-up "print(1)" --resident -- /usr/bin/python3 -c "import sys
exec(sys.stdin.read())" >/dev/null
echo "baked blocks $(stat -c %b p/memory)"
for w in new old; do
  for i in 1 2 3; do
    usleep $((i * 1533))
    ./ember-$w run p --no-jail --event-text "b = bytearray(64<<20)" --timing=json 2>&1 >/dev/null | sed "s/^/$w alloc /"
    echo "$w blocks $(stat -c %b p/memory)"
  done
done
for i in 1 2 3 4 5; do
for w in new old; do
    usleep $((i * 1533))
    ./ember-$w run p --no-jail --event-text "b = bytearray(64<<20)" --timing=json 2>&1 >/dev/null | sed "s/^/$w again /"
done; done
