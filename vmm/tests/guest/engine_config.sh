# The PCI test engine ($engine, its directory in sysfs), and its configuration space: `word AT` reads 32 bits, `put AT SIZE BYTES`
# writes (bytes as printf has them), $ats and $pri are its ATS and PRI capabilities. Then it says what ATS is at.
for engine in /sys/bus/pci/devices/*; do
    [ "$(cat "$engine/vendor" "$engine/device")" != "0x13b5
0xff80" ] || break
done
word() {
    od -An -tx4 -j"$1" -N4 "$engine/config" | tr -d ' '
}
put() {
    printf "$3" | dd of="$engine/config" bs="$2" seek=$(($1 / $2)) conv=notrunc 2>/dev/null
}
capability() {
    at=256
    while [ $at -ne 0 ]; do
        header=$((0x$(word $at)))
        [ $((header & 0xffff)) -ne "$1" ] || break
        at=$((header >> 20))
    done
    echo $at
}
ats=$(capability 15) pri=$(capability 19)
[ $ats -ne 0 ] && [ $pri -ne 0 ] || { echo "the engine has no ATS"; exit 1; }
said_ats() {
    echo "ATS control $(word $((ats + 4)) | cut -c1-4)"
}
