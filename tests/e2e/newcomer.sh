#!/bin/sh
# SPDX-License-Identifier: MIT
# newcomer.sh WHEELS MODEL [OPTION...]: what a newcomer does on a bare machine, with a folder of wheels for a network:
# installs, looks, converts MODEL (with these options, or to CB4), checks it, talks to it, measures it, serves it.
# Says how long each step took. $PYTHON is the Python to begin with.
set -eu
wheels=$(realpath "$1") model=$(realpath "$2") python=${PYTHON:-python3}
shift 2
[ $# -gt 0 ] || set -- --type cb4
question="What is the capital of France?" answer="The capital of France is Paris."
here=$(mktemp -d)
server=
trap 'test -z "$server" || kill "$server" 2>/dev/null; rm -rf "$here"' EXIT
cd "$here"
began=$(date +%s)
last=$began

step() { # what has just been done
    now=$(date +%s)
    echo "-- $1: $((now - last)) s"
    last=$now
}

said() { # FILE: it has the answer
    grep -qF "$answer" "$1" || { echo "no answer:" >&2; cat "$1" >&2; exit 1; }
}

for compiler in cc gcc c++ g++ clang make; do
    ! command -v $compiler >/dev/null || echo "note: $compiler is on this machine, which the installation must not need"
done
$python -m venv venv
step "python3 -m venv"
venv/bin/pip install --quiet --disable-pip-version-check --no-index --only-binary :all: --find-links "$wheels" lutra-llm
step "pip install lutra-llm"
PATH=$here/venv/bin:$PATH
lutra --version
lutra info >info.txt
grep -A 3 "ggml's own code" info.txt
step "lutra info"
lutra convert "$model" --no-calibration "$@" -o model.gguf
step "lutra convert"
lutra chat model.gguf -p "$question" --temp 0 | tee chat.txt
said chat.txt
step "lutra chat"
echo "-- from pip to the first answer: $((last - began)) s"
lutra verify model.gguf | tail -n 2
step "lutra verify"
python -c "
import lutra_llm as lutra
with lutra.Model('model.gguf') as model:
    print(model.chat('$question'))" >python.txt 2>/dev/null
said python.txt
step "import lutra_llm"
lutra bench model.gguf -p 32 -n 8 -r 1
step "lutra bench"
lutra serve model.gguf --port 8765 >serve.txt 2>&1 &
server=$!
tries=0
until curl -sf http://127.0.0.1:8765/health >/dev/null; do
    tries=$((tries + 1))
    kill -0 $server && [ $tries -lt 300 ] || { cat serve.txt >&2; exit 1; }
    sleep 1
done
curl -sf http://127.0.0.1:8765/v1/chat/completions -H 'Content-Type: application/json' \
    -d "{\"messages\": [{\"role\": \"user\", \"content\": \"$question\"}], \"temperature\": 0, \"max_tokens\": 30}" >served.txt
said served.txt
kill $server
wait $server || true
server=
step "lutra serve, curl"
