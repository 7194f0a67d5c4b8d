# Demands: 8 MiB of random data written to the first disk, synced, and read again past the page cache are what was
# written. Prints the SHA-256 of the whole disk, so that the host can compare what it finds in its file.
[ -b /dev/vda ] || { echo "no disk"; exit 1; }
dd if=/dev/urandom of=/tmp/data bs=1M count=8 2>/dev/null
dd if=/tmp/data of=/dev/vda bs=1M seek=1 conv=notrunc,fsync 2>/dev/null || { echo "the write failed"; exit 1; }
sync
echo 3 >/proc/sys/vm/drop_caches
written=$(sha256sum </tmp/data)
found=$(dd if=/dev/vda bs=1M skip=1 count=8 2>/dev/null | sha256sum)
rm /tmp/data
[ "$written" = "$found" ] || { echo "read back: $found, written: $written"; exit 1; }
hash=$(sha256sum </dev/vda) && echo "${hash%% *}"
