total 194360
-rw-------    1 0        0          2905696 Nov 30 00:13 initramfs
-rw-------    1 0        0         57575404 Nov 30 00:13 kernel
-rw-------    1 0        0             1593 Nov 30 00:13 manifest.json
-rw-------    1 0        0        268435456 Nov 30 00:13 memory
-rw-------    1 0        0           113688 Nov 30 00:13 memory.index
-rw-------    1 0        0         85983232 Nov 30 00:13 root.img
-rw-------    1 0        0            12600 Nov 30 00:13 state
-rw-------    1 0        0             5064 Nov 30 00:13 working-set
