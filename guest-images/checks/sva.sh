# Demands: processes share their address spaces with the engine that may stall: pages that nobody has touched, pages that
# go, huge pages, two processes at once, one that ends while the engine writes to it. Wants --tools.
insmod /smmulab/smmulab_engine.ko || exit 1
labtest sva /dev/smmulab0 || exit 1
rmmod smmulab_engine
