#!/bin/sh
# What udhcpc calls when a lease changes: sets address, default route and name servers.
case "$1" in
deconfig)
    ip addr flush dev "$interface"
    ip link set "$interface" up
    ;;
bound | renew)
    ip addr flush dev "$interface"
    ip addr add "$ip/${mask:-24}" dev "$interface"
    for gateway in $router; do
        # A gateway outside the subnet is reached through the link itself.
        ip route add "$gateway" dev "$interface" 2>/dev/null
        ip route add default via "$gateway" dev "$interface"
        break
    done
    : >/etc/resolv.conf
    for server in $dns; do
        echo "nameserver $server" >>/etc/resolv.conf
    done
    ;;
esac
