#!/usr/bin/env bash
# SPDX-License-Identifier: MIT OR Apache-2.0
# Runs a command in the container that the other jobs run in, with /dev/kvm where the runner has it.
set -euo pipefail
device=()
if [ -e /dev/kvm ]; then device=(--device=/dev/kvm); fi
summary=${GITHUB_STEP_SUMMARY:-/dev/null}
exec docker run --rm "${device[@]}" \
  --volume "$PWD:/kvmi" --workdir /kvmi \
  --volume "$HOME/.cache/kvmi:/cache" --env KVMI_CACHE=/cache --volume "$HOME/.cargo/registry:/usr/local/cargo/registry" \
  --volume "$summary:/summary" --env GITHUB_STEP_SUMMARY=/summary \
  rust:1.95.0-bookworm "$@"
