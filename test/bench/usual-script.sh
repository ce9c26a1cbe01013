#!/bin/bash
# Moves a running domain with its snapshots the way people do it by hand: save the snapshots' XML, delete their metadata,
# migrate, give the metadata back. This is what the bench compares with, so it is written as a careful person would: names
# quoted, leaves deleted first, the current snapshot kept, security information included, each failure ends it.
# The last line of stdout is for the bench: milliseconds of each part.
#
# usage: usual-script.sh DOMAIN SOURCE_URI DESTINATION_URI FOLDER
set -euo pipefail
export LC_ALL=C
domain=$1 source=$2 destination=$3 folder=$4

now() { local at=${EPOCHREALTIME/./}; echo "$((at / 1000))"; }

t0=$(now)
mapfile -t names < <(virsh -q -c "$source" snapshot-list "$domain" --name --topological | sed '/^$/d')
current=$(virsh -q -c "$source" snapshot-current "$domain" --name 2>/dev/null || true)
for index in "${!names[@]}"; do
  virsh -q -c "$source" snapshot-dumpxml "$domain" "${names[index]}" --security-info > "$folder/$index.xml"
done

t1=$(now)
for ((index = ${#names[@]} - 1; index >= 0; index -= 1)); do
  virsh -q -c "$source" snapshot-delete "$domain" "${names[index]}" --metadata > /dev/null
done

t2=$(now)
virsh -q -c "$source" migrate --live --persistent --undefinesource --unsafe "$domain" "$destination"

t3=$(now)
for index in "${!names[@]}"; do
  if [ "${names[index]}" = "$current" ]; then
    virsh -q -c "$destination" snapshot-create "$domain" "$folder/$index.xml" --redefine --current > /dev/null
  else
    virsh -q -c "$destination" snapshot-create "$domain" "$folder/$index.xml" --redefine > /dev/null
  fi
done

t4=$(now)
printf '{"snapshots":%d,"dumpMs":%d,"deleteMs":%d,"migrateMs":%d,"redefineMs":%d}\n' \
  "${#names[@]}" $((t1 - t0)) $((t2 - t1)) $((t3 - t2)) $((t4 - t3))
