# Demands: a download of $URL over the network succeeds. Prints the SHA-256 of what came, for the host to compare.
[ -n "$URL" ] || { echo "URL is not set"; exit 1; }
wget -q -O /tmp/download "$URL" || { echo "cannot download $URL"; exit 1; }
hash=$(sha256sum </tmp/download) && echo "${hash%% *}"
