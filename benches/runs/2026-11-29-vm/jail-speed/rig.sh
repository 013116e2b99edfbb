#!/bin/sh
# base against new, jailed and not, on a small guest; --timing=json lines to /out
set -eu
cp /in/base-ember /tmp/base; cp $EMBER_BIN /tmp/new
/tmp/new bake /tmp/b --interface port --kernel $EMBER_SMALL_GUESTS/echo.elf --memory 64MiB >/dev/null 2>&1
for i in 1 2 3 4 5 6 7 8 9 10 11 12; do
 for w in base new; do
  /tmp/$w run /tmp/b --event-text hello --require-jail --timing=json >/dev/null 2>>/out/$w-jailed.jsonl
  /tmp/$w run /tmp/b --event-text hello --no-jail --timing=json >/dev/null 2>>/out/$w-open.jsonl
 done
done
