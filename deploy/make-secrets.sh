#!/bin/sh
# Makes the secrets of docker-compose.yml where there are none yet. They are readable for you alone.
set -eu
cd "$(dirname "$0")/secrets"
umask 077
make() {
  [ -s "$1" ] || od -An -v -tx1 -N "$2" /dev/urandom | tr -d ' \n' > "$1"
}
make client.key 16    # of the hash that client ids are stored as; changing it cuts every client's history
make probe.key 32     # of the marks by which workers know probes
make console.token 16 # what the console asks for
echo "secrets stand in $PWD"
