# Demands: the virtio entropy device gives bytes, and not twice the same.
[ -c /dev/hwrng ] || { echo "no hardware random number generator"; exit 1; }
read -r current </sys/class/misc/hw_random/rng_current
case "$current" in virtio_rng*) ;; *) echo "the generator in use is $current"; exit 1 ;; esac
one=$(dd if=/dev/hwrng bs=64 count=1 2>/dev/null | sha256sum)
two=$(dd if=/dev/hwrng bs=64 count=1 2>/dev/null | sha256sum)
[ "$one" != "$two" ] || { echo "the same bytes twice"; exit 1; }
