# Demands: each of the guest module's mistakes does harm of the expected kind, and its correct twin does none. Wants
# --tools and an engine. MISTAKES are lines of a command and what comes of it: data (they are wrong), refused (the SMMU
# stops it), nothing (that one run could see).
insmod /smmulab/smmulab_engine.ko || exit 1
bad=0
[ -n "$MISTAKES" ] || MISTAKES='dma-after-unmap refused
unmap-in-flight refused
free-before-unmap nothing
cpu-writes nothing
early-doorbell data
unmap-without-sync data
narrow-flush data
stale-page nothing'
make() {
    exec 3<>/dev/smmulab0
    status=data
    echo "$*" 2>/dev/null >&3 && status=nothing
    ! grep -q refused <&3 || status=refused
    exec 3>&-
}
for line in $(echo "$MISTAKES" | tr ' ' :); do
    make "${line%%:*} size=8192"
    [ $status = "${line##*:}" ] || { echo "${line%%:*}: $status, not ${line##*:}"; bad=1; }
    make "${line%%:*} size=8192 correct"
    [ $status = nothing ] || { echo "${line%%:*} as it should be: $status"; bad=1; }
done
rmmod smmulab_engine || bad=1
exit $bad
