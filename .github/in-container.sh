#!/usr/bin/env bash
# SPDX-License-Identifier: MIT OR Apache-2.0
# Runs a command in the container that the other jobs run in, with /dev/kvm where the runner has it. The checkout is where it is outside, and so
# are the caches in it, which the action `cache` has named.
set -euo pipefail
device=()
if [ -e /dev/kvm ]; then device=(--device=/dev/kvm); fi
summary=${GITHUB_STEP_SUMMARY:-/dev/null}
status=0
docker run --rm "${device[@]}" \
  --volume "$PWD:$PWD" --workdir "$PWD" --env CI --env KVMI_CACHE --env CARGO_HOME \
  --env GIT_CONFIG_COUNT=1 --env GIT_CONFIG_KEY_0=safe.directory --env "GIT_CONFIG_VALUE_0=$PWD" \
  --volume "$summary:/summary" --env GITHUB_STEP_SUMMARY=/summary \
  rust:1.95.0-bookworm "$@" || status=$?
# The container is root's, and so is what it made; the next steps are not.
sudo chown --recursive "$(id --user):$(id --group)" target
exit "$status"
