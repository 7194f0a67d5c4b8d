# Demands: all CPUs that the device tree names are online and run programs at the same time as the others, and the
# clock goes forward on each.
bad=0
present=$(ls -d /sys/devices/system/cpu/cpu[0-9]* | wc -l)
[ "$(nproc)" = "$present" ] || { echo "$(nproc) of $present CPUs are online"; bad=1; }
for cpu in $(seq 0 $((present - 1))); do
    taskset $((1 << cpu)) sh -c '
        read -r before _ </proc/uptime
        i=0; while [ $i -lt 2000 ]; do i=$((i + 1)); done
        sleep 0.1
        read -r after _ </proc/uptime
        [ "$before" != "$after" ]' &
done
for job in $(jobs -p); do
    wait "$job" || { echo "a CPU does not get on"; bad=1; }
done
exit $bad
