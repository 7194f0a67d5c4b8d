# Demands: on every test engine, the guest module's tests of the DMA API, of interrupts, of domains and of PASIDs pass.
# Wants --tools. TESTS, if set, are the commands to run, one a line.
insmod /smmulab/smmulab_engine.ko || exit 1
bad=0
[ -n "$TESTS" ] || TESTS='copy size=65536 frames=4
copy size=4096 loops=20
coherent size=8192
sync size=8192 loops=5
sg size=65536 frames=2
msi loops=10
fault
stress threads=3 loops=5 size=16384
domain loops=2
domain-race threads=4 loops=20
pasid loops=2'
for device in /dev/smmulab*; do
    [ -c "$device" ] || { echo "no engine"; exit 1; }
    echo "$TESTS" | while read -r command; do
        exec 3<>"$device"
        echo "$command" >&3 || echo "FAILED $device: $command"
        cat <&3
        exec 3>&-
    done >/tmp/answers
    cat /tmp/answers
    ! grep -q '^FAILED' /tmp/answers || bad=1
done
rmmod smmulab_engine || bad=1
exit $bad
