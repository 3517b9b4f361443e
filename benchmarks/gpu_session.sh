#!/usr/bin/env bash
# One visit to a machine with a GPU: the tests that need one, real commands, then the benchmarks, each in its own time.
#
#   bash benchmarks/gpu_session.sh OUT PHASE SECONDS [PHASE SECONDS ...]
#
# A phase is "tests" (its pytest arguments are in $GPU_TESTS), "commands" (whet itself on the examples), "both" at once,
# or "bench:ARGUMENTS" of benchmarks/gpu.py. What each writes is in OUT/session.tar.gz, packed again after each phase.
set -u
cd "$(dirname "$0")/.."
out=$1
shift
logs=$(mktemp -d)
export PYTHONPATH="${PYTHONPATH:+$PYTHONPATH:}$PWD/src" PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
began=$SECONDS

say() { echo "[$((SECONDS - began)) s] $*"; }

tests() { # seconds
    # Warnings are listed and not errors: the packages of a lent machine are not ours to choose.
    OMP_NUM_THREADS=1 timeout --signal=INT "$1" python3 -m pytest ${GPU_TESTS:-tests/gpu} -q -p no:cacheprovider \
        -n "${GPU_WORKERS:-10}" --dist worksteal --timeout 100 -o filterwarnings=default \
        --junitxml="$logs/tests.xml" >"$logs/tests.log" 2>&1
    echo "tests: exit $?" >>"$logs/tests.log"
}

commands() { # seconds
    local name
    for name in ${GPU_EXAMPLES:-quickstart lora qlora full dpo}; do
        {
            timeout "$1" python3 -m whet train "examples/$name.yaml" >"$logs/$name.log" 2>&1
            echo "whet train examples/$name.yaml: exit $?" >>"$logs/$name.log"
        } &
    done
    wait
}

bench() { # seconds, arguments
    # shellcheck disable=SC2086
    timeout "$1" python3 benchmarks/gpu.py --minutes "$(awk "BEGIN {print ($1 - 45) / 60}")" --logs "$logs/bench" \
        $2 >>"$logs/bench.log" 2>&1
    echo "bench: exit $?" >>"$logs/bench.log"
    mkdir -p "$logs/results"
    cp benchmarks/results/gpu-*.json "$logs/results/" 2>/dev/null
}

nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader | tee "$logs/device.txt"
while [ $# -ge 2 ]; do
    say "$1, at most $2 s"
    case $1 in
        both) tests "$2" & commands "$2"; wait ;;
        tests | commands) "$1" "$2" ;;
        bench:*) bench "$2" "${1#bench:}" ;;
        *) echo "no such phase: $1" >&2; exit 2 ;;
    esac
    tar czf "$out/session.tar.gz" -C "$logs" .
    shift 2
done
say "over"
for log in "$logs"/*.log; do
    case $log in
        */tests.log) grep -E "^(FAILED|ERROR)|passed|failed|skipped in|exit" "$log" | cut -c1-260 | tail -70 ;;
        */bench.log) grep -E "tokens_per_second|error|exit" "$log" | grep -v '^{"name"' | cut -c1-420 ;;
        *) tail -n 2 "$log" | cut -c1-200 ;;
    esac
done
