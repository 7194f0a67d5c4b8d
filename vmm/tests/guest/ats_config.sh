# The PCI test engine ($engine, its directory in sysfs) and its ATS and PRI capabilities ($ats, $pri), as configuration space has
# them: no driver of Linux's enables page requests for an SMMU, but any write may.
for engine in /sys/bus/pci/devices/*; do
    [ "$(cat "$engine/vendor" "$engine/device")" != "0x13b5
0xff80" ] || break
done
# 16 bits at an offset, in hexadecimal.
half() {
    od -An -tx2 -j"$1" -N2 "$engine/config" | tr -d ' '
}
# An extended capability by its ID.
capability() {
    at=256
    while [ $at -ne 0 ] && [ $((0x$(half $at))) -ne "$1" ]; do
        at=$((0x$(half $((at + 2))) >> 4))
    done
    echo $at
}
# put OFFSET SIZE BYTES: writes (bytes as printf has them).
put() {
    printf "$3" | dd of="$engine/config" bs="$2" seek=$(($1 / $2)) conv=notrunc 2>/dev/null
}
ats=$(capability 15) pri=$(capability 19)

# Says what ATS and page requests are at.
status() {
    [ "$(half $((ats + 6)))" = 8000 ] && on=on || on=off
    echo "$1: $on, page requests $(half $((pri + 4))), status $(half $((pri + 6)))"
}
# Up to 32 requests may be outstanding.
page_requests_on() {
    [ "$pri" -ne 0 ] && put $((pri + 12)) 4 '\040\0\0\0' && put $((pri + 4)) 2 '\1\0'
}
# Clears Response Failure.
forgive() {
    put $((pri + 6)) 2 '\1\0'
}
# Gives the engine to vfio-pci, which does not reset it when it is opened, so that page requests stay on.
for_programs() {
    echo >"$engine/reset_method"
    echo vfio-pci >"$engine/driver_override" && echo "${engine##*/}" >/sys/bus/pci/drivers_probe
}
# The program that is on the disk.
fetch_program() {
    cat /dev/vda >/tmp/labtest && chmod +x /tmp/labtest
}
