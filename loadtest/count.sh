#!/usr/bin/env bash
# How many times a second a running node answers the online count of a channel that is not empty.
#
#   loadtest/count.sh [ws://127.0.0.1:8000]
#
# MEMBERS (1000) join CHANNEL (lobby) and stay while wrk asks with CONNECTIONS (16) for SECONDS_TO_RUN (5).
# LOAD names the load generator, if it is not where cargo puts it.
set -euo pipefail

url=${1:-ws://127.0.0.1:8000}
url=${url%/}
members=${MEMBERS:-1000}
channel=${CHANNEL:-lobby}
connections=${CONNECTIONS:-16}
seconds=${SECONDS_TO_RUN:-5}
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
load=${LOAD:-${CARGO_TARGET_DIR:-$root/target}/release/examples/load}

if ! command -v wrk >/dev/null 2>&1; then
  echo "skipped: wrk is not installed (on Debian: apt-get install wrk)"
  exit 0
fi
if [[ ! -x $load ]]; then
  echo "there is no load generator at $load: cargo build --release --example load" >&2
  exit 2
fi

# In a path, all but these stands as %XX.
encode() {
  local LC_ALL=C text=$1 out='' at c
  for ((at = 0; at < ${#text}; at++)); do
    c=${text:at:1}
    case $c in
      [a-zA-Z0-9._~-]) out+=$c ;;
      *) printf -v c '%%%02X' "'$c" && out+=$c ;;
    esac
  done
  printf '%s\n' "$out"
}

# The holder says "ready: …" when all are there and every view is complete.
exec 3< <("$load" hold --url "$url" --members "$members" --channel "$channel" --seconds $((seconds + 60)) 2>&1)
holder=$!
trap 'kill "$holder" 2>/dev/null || true' EXIT
read -r -t 60 line <&3 || line="nothing within a minute"
if [[ $line != ready:* ]]; then
  echo "the members could not join: $line" >&2
  exit 1
fi
echo "$line"

target="http${url#ws}/v1/channels/$(encode "$channel")/presence/count"
if command -v curl >/dev/null 2>&1; then echo "answer: $(curl -sS --max-time 5 "$target")"; fi
result=$(wrk -t1 -c"$connections" -d"${seconds}s" --latency "$target")
printf '%s\n' "$result"
# wrk itself is content with any answer.
if [[ $result == *"Non-2xx"* || $result == *"Socket errors"* ]]; then exit 1; fi
