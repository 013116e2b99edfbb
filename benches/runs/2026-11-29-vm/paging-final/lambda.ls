total 213988
-rw-------    1 0        0          4485120 Nov 30 00:13 drive-function.img
-rw-------    1 0        0          2905696 Nov 30 00:13 initramfs
-rw-------    1 0        0         57575404 Nov 30 00:13 kernel
-rw-------    1 0        0             2023 Nov 30 00:13 manifest.json
-rw-------    1 0        0        268435456 Nov 30 00:13 memory
-rw-------    1 0        0           155792 Nov 30 00:13 memory.index
-rw-------    1 0        0         85983232 Nov 30 00:13 root.img
-rw-------    1 0        0            12743 Nov 30 00:13 state
-rw-------    1 0        0             7512 Nov 30 00:13 working-set
