#!/usr/bin/env bash
# Builds the image, runs the compose files on a Docker engine, and leaves nothing behind.
#   docker/test.sh                  all of it, faults included, on the ports of docker/.env; about 15 minutes on 2 cores
#   docker/test.sh --binary FILE    the image's last stage round a binary that is there already, on free ports, without
#                                   the faults; about two minutes
# Base images are pulled. Where no registry is reached, docker/stand-ins.sh makes them and vendors the crates (as root).
# Needs curl, and grpcurl or buf. COMPOSE names the compose command; left out, it is `docker compose` or docker-compose.
set -euo pipefail
cd "$(dirname "$0")/.."

binary=""
[ "${1:-}" != --binary ] || binary=$(realpath "${2:?--binary FILE}")
PATH="$PATH:$PWD/target/ci/bin"
work=$(mktemp -d)
made=()
dangling=$(docker images -qf dangling=true)
export COMPOSE_PROJECT_NAME=trefoil-test TREFOIL_IMAGE=trefoil:test
TREFOIL_COMMIT=$(git rev-parse --short=12 HEAD)
export TREFOIL_COMMIT
if [ -z "${COMPOSE:-}" ]; then
  if docker compose version >/dev/null 2>&1; then COMPOSE="docker compose"; else COMPOSE=docker-compose; fi
fi
three=docker/docker-compose.yml
all=docker/compose.all-in-one.yml

say() { printf -- '-- %s\n' "$*"; }
fail() { printf 'FAILED: %s\n' "$*" >&2; exit 1; }
compose() { (cd "$work/context" && $COMPOSE -f "$@"); }
trefoil() { docker run --rm --network host "$TREFOIL_IMAGE" "$@"; }

# Says what a container was about when something failed, and removes whatever is there.
end() {
  local code=$?
  set +e
  if [ "$code" != 0 ]; then
    for name in $(docker ps -aq --filter "label=com.docker.compose.project=$COMPOSE_PROJECT_NAME"); do
      docker inspect -f '== {{.Name}}: {{.State.Status}} {{.State.ExitCode}}' "$name"
      docker logs --tail 10 "$name" 2>&1
    done
  fi
  for file in "$three" "$all"; do
    [ ! -d "$work/context" ] || compose "$file" down -v >/dev/null 2>&1
  done
  docker image rm -f "$TREFOIL_IMAGE" "${made[@]}" >/dev/null 2>&1
  # What the stages of the build left.
  docker images -qf dangling=true | grep -vxF "${dangling:-none}" | xargs -r docker image rm >/dev/null 2>&1
  rm -rf "$work"
  exit "$code"
}
trap end EXIT

# --- the image ---------------------------------------------------------------------------------------------------

base() {
  local kind=$1 image=$2
  if docker image inspect "$image" >/dev/null 2>&1 || docker pull -q "$image" >/dev/null 2>&1; then return; fi
  docker/stand-ins.sh "$kind" "$work"
  made+=("$image")
}

# The folder that compose builds in: a copy of this tree, with vendored crates where there is no network.
make_context() {
  base runtime "$(sed -n 's/^FROM \([^ ]*\)$/\1/p' docker/Dockerfile)"
  if [ -n "$binary" ]; then
    mkdir -p "$work"/context/{data,out/usr/local/bin,out/usr/share/doc/trefoil}
    cp -r docker "$work/context/"
    cp LICENSE "$work/context/out/usr/share/doc/trefoil/"
    strip -o "$work/context/out/usr/local/bin/trefoil" "$binary"
    {
      printf 'FROM scratch AS build\nCOPY out/ /out/\nCOPY data/ /data/\n'
      sed -n '/^FROM [^ ]*$/,$p' docker/Dockerfile
    } >"$work/context/docker/Dockerfile"
  else
    base build "$(sed -n 's/^FROM \([^ ]*\) AS build$/\1/p' docker/Dockerfile)"
    docker/stand-ins.sh context "$work"
  fi
}

free_ports() {
  local names=()
  for cluster in LOCK QUEUE CACHE TREFOIL; do names+=("${cluster}"_PORT_{1,2,3}); done
  python3 - "${names[@]}" <<'PYTHON'
import socket, sys
held = [(name, socket.create_server(("127.0.0.1", 0))) for name in sys.argv[1:]]
for name, socket in held:
    print(f"export {name}={socket.getsockname()[1]}")
PYTHON
}

check_image() {
  local size user
  size=$(docker image inspect -f '{{.Size}}' "$TREFOIL_IMAGE")
  user=$(docker image inspect -f '{{.Config.User}}' "$TREFOIL_IMAGE")
  say "image: $((size / 1000000)) MB, user $user"
  [ "$user" = 65532:65532 ] || fail "the image runs as $user"
  # A binary that is not optimised is larger.
  [ -n "$binary" ] || [ "$size" -lt 60000000 ] || fail "the image has $size bytes"
  [ -n "$binary" ] || [[ $(trefoil version) == *"$TREFOIL_COMMIT"* ]] || fail "the image does not know its commit"
}

# --- the clusters ------------------------------------------------------------------------------------------------

address() { # of CLUSTER NUMBER
  local port=${1}_PORT_$2
  echo "127.0.0.1:${!port}"
}

container() { # SERVICE
  docker ps -aq --filter "label=com.docker.compose.project=$COMPOSE_PROJECT_NAME" --filter "label=com.docker.compose.service=$1"
}

wait_healthy() { # SERVICE...
  local until=$((SECONDS + 90)) name
  for name in "$@"; do
    until [ "$(docker inspect -f '{{.State.Health.Status}}' "$(container "$name")")" = healthy ]; do
      [ "$SECONDS" -lt "$until" ] || fail "$name is not healthy"
      sleep 0.2
    done
  done
}

call() { # ADDRESS METHOD JSON
  if command -v grpcurl >/dev/null; then
    grpcurl -plaintext -d "$3" "$1" "$2"
  else
    buf curl --protocol grpc --http2-prior-knowledge -d "$3" "http://$1/$2"
  fi
}

expect() { # WHAT-THE-ANSWER-HAS ADDRESS METHOD JSON
  local answer
  answer=$(call "${@:2}" 2>&1) || fail "$2 $3: $answer"
  tr -d ' \n' <<<"$answer" | grep -qF "$1" || fail "$2 $3: no $1 in $answer"
  printf '%s' "$answer"
}

check_node() { # ADDRESS
  local health metrics until=$((SECONDS + 10))
  # A shard that changes its leader has none for a moment.
  until health=$(curl -fsS "http://$1/health" 2>&1); do
    [ "$SECONDS" -lt "$until" ] || fail "$1/health: $health"
  done
  [[ $health == '{"ok":true,'* ]] || fail "$1/health: $health"
  metrics=$(curl -fsS "http://$1/metrics")
  grep -q '^trefoil_raft_role{' <<<"$metrics" || fail "$1/metrics has no trefoil_raft_role"
  until [[ $(call "$1" grpc.health.v1.Health/Check '{}' 2>&1) =~ '"SERVING"' ]]; do
    [ "$SECONDS" -lt "$until" ] || fail "$1 does not serve"
  done
  expect '"status":"SERVING"' "$1" grpc.health.v1.Health/Check '{"service": "liveness"}' >/dev/null
}

check_lock() { # CLUSTER
  local session
  session=$(expect '"ttlMs":"20000"' "$(address "$1" 3)" trefoil.lock.v1.LockService/OpenSession '{"ttl_ms": 20000}' |
    sed -n 's/.*"sessionId": *"\([0-9]*\)".*/\1/p')
  expect '"acquired":true' "$(address "$1" 1)" trefoil.lock.v1.LockService/Acquire "{\"session_id\": \"$session\", \"name\": \"printer\"}" >/dev/null
  expect '"header"' "$(address "$1" 2)" trefoil.lock.v1.LockService/Release "{\"session_id\": \"$session\", \"name\": \"printer\"}" >/dev/null
}

check_queue() { # CLUSTER
  local lease
  expect '"messageIds":["' "$(address "$1" 2)" trefoil.queue.v1.QueueService/Enqueue \
    '{"queue": "jobs", "messages": [{"key": "a", "value": {"text": "one"}}]}' >/dev/null
  lease=$(expect '"text":"one"' "$(address "$1" 3)" trefoil.queue.v1.QueueService/Dequeue '{"queue": "jobs", "wait_ms": 5000}' |
    sed -n 's/.*"leaseId": *"\([^"]*\)".*/\1/p')
  expect '"header"' "$(address "$1" 1)" trefoil.queue.v1.QueueService/Ack "{\"queue\": \"jobs\", \"lease_id\": \"$lease\"}" >/dev/null
}

check_cache() { # CLUSTER
  expect '"state":"LINE_STATE_MODIFIED"' "$(address "$1" 1)" trefoil.cache.v1.CacheService/Put \
    '{"key": "greeting", "value": {"text": "hello"}}' >/dev/null
  expect '"text":"hello"' "$(address "$1" 3)" trefoil.cache.v1.CacheService/Get '{"key": "greeting"}' >/dev/null
}

check_three() {
  say "three clusters: up --build"
  compose "$three" up --build -d >"$work/up.log" 2>&1 || { tail -40 "$work/up.log"; fail "up"; }
  check_image
  local start=$SECONDS
  wait_healthy {node,queue,cache}{1,2,3}
  say "three clusters: nine nodes healthy $((SECONDS - start)) s after they were started"
  for cluster in LOCK QUEUE CACHE; do
    for number in 1 2 3; do check_node "$(address $cluster $number)"; done
  done
  check_lock LOCK
  check_queue QUEUE
  check_cache CACHE
  if call "$(address LOCK 1)" trefoil.cache.v1.CacheService/Get '{"key": "greeting"}' >"$work/off" 2>&1; then
    fail "the lock cluster serves the cache"
  fi
  grep -q SERVICE_OFF "$work/off" || grep -q 'does not serve' "$work/off" || fail "no SERVICE_OFF: $(cat "$work/off")"
  say "nine nodes: /health, /metrics, gRPC health; the calls of the README on each cluster"
}

check_survives() {
  compose "$three" down >/dev/null 2>&1
  compose "$three" up -d cache1 cache2 cache3 >/dev/null 2>&1
  wait_healthy cache{1,2,3}
  expect '"text":"hello"' "$(address CACHE 2)" trefoil.cache.v1.CacheService/Get '{"key": "greeting"}' >/dev/null
  say "down, up: the volumes hold what was put"
}

check_all_in_one() {
  compose "$three" down -v >/dev/null 2>&1
  compose "$all" up --build -d >"$work/up.log" 2>&1 || { tail -40 "$work/up.log"; fail "up of $all"; }
  wait_healthy trefoil{1,2,3}
  for number in 1 2 3; do check_node "$(address TREFOIL $number)"; done
  check_lock TREFOIL
  check_queue TREFOIL
  check_cache TREFOIL
  # From within a container the other nodes' addresses for clients lead nowhere.
  docker exec "$(container trefoil2)" trefoil -o json status >"$work/status" 2>&1 || fail "status in a container: $(cat "$work/status")"
  [ "$(grep -o '"error": *null' "$work/status" | wc -l)" -eq 3 ] ||
    fail "status in a container: $(cat "$work/status")"
  compose "$all" down -v >/dev/null 2>&1
  say "all in one: three nodes, every call of the README"
}

# --- starts that are refused ---------------------------------------------------------------------------------------

refused() { # EXIT-CODE WHAT-IT-SAYS OPTIONS-OF-DOCKER-RUN...
  local code=0 line
  line=$(docker run --rm -e TREFOIL_ALLOW_PLAINTEXT=true -e TREFOIL_ADVERTISE=h:1 -e TREFOIL_INITIAL_CLUSTER=n1=n1:7101,n2=n2:7101 \
    "${@:3}" "$TREFOIL_IMAGE" 2>&1) || code=$?
  line=$(grep '^trefoil: ' <<<"$line") || fail "$2: nothing but $line"
  [ "$code" = "$1" ] || fail "$2: exit code $code: $line"
  [[ $line == *"$2"* ]] || fail "no '$2' in: $line"
  say "refused with $code: $line"
}

# A volume with a file that only root may read, as a copy made by root has it.
foreign_file() {
  local id
  id=$(docker create -v "$COMPOSE_PROJECT_NAME-foreign:/var/lib/trefoil" "$TREFOIL_IMAGE")
  touch "$work/identity"
  tar -C "$work" --owner=0 --group=0 --mode=600 -c identity | docker cp - "$id:/var/lib/trefoil"
  docker rm "$id" >/dev/null
}

check_refusals() {
  local volume=${COMPOSE_PROJECT_NAME}_cache2
  refused 64 "--name: is missing"
  refused 64 "n9 is not in --initial-cluster" -e TREFOIL_NAME=n9
  refused 64 "must be 1 to 64, not 900" -e TREFOIL_NAME=n1 -e TREFOIL_SHARDS=900
  refused 64 "add --allow-plaintext" -e TREFOIL_NAME=n1 -e TREFOIL_ALLOW_PLAINTEXT=false
  refused 1 "user 65532 must own" -e TREFOIL_NAME=n1 --tmpfs /var/lib/trefoil:uid=0,mode=755
  refused 1 "mount a volume there" -e TREFOIL_NAME=n1 --read-only
  foreign_file
  refused 1 "cannot use /var/lib/trefoil/identity: Permission denied" -e TREFOIL_NAME=n1 -v "$COMPOSE_PROJECT_NAME-foreign:/var/lib/trefoil"
  docker volume rm "$COMPOSE_PROJECT_NAME-foreign" >/dev/null

  local cache=(-e TREFOIL_INITIAL_CLUSTER=cache1=cache1:7101,cache2=cache2:7101,cache3=cache3:7101 -e TREFOIL_SERVICES=cache)
  docker stop "$(container cache2)" >/dev/null
  refused 1 "belongs to node cache2" "${cache[@]}" -e TREFOIL_NAME=cache1 -v "$volume:/var/lib/trefoil"
  refused 1 "was made with --shards 6, not 3" "${cache[@]}" -e TREFOIL_NAME=cache2 -e TREFOIL_SHARDS=3 -v "$volume:/var/lib/trefoil"
  docker start "$(container cache2)" >/dev/null
  wait_healthy cache2
  refused 1 "in use by another process" "${cache[@]}" -e TREFOIL_NAME=cache2 -v "$volume:/var/lib/trefoil"

  CACHE_PORT_3=${CACHE_PORT_1:?} compose "$three" up -d cache3 >"$work/port" 2>&1 && fail "two nodes share a port"
  grep -qiE 'port is already allocated|address already in use' "$work/port" || fail "a port in use: $(cat "$work/port")"
  say "refused: $(grep -iE 'port is already|address already' "$work/port" | tail -1)"

  TREFOIL_CLUSTER_TOKEN=other compose "$three" up -d cache2 >/dev/null 2>&1
  local until=$((SECONDS + 60)) id line
  id=$(container cache2)
  until [ "$(docker inspect -f '{{.State.Status}} {{.RestartCount}}' "$id")" = "exited 5" ]; do
    [ "$SECONDS" -lt "$until" ] || fail "a node with another's volume: $(docker inspect -f '{{json .State}}' "$id")"
    sleep 0.5
  done
  line=$(docker logs --tail 1 "$id" 2>&1)
  [[ $line == *'belongs to another cluster'* ]] || fail "another cluster's volume: $line"
  say "five restarts, then no more: $line"
}

# --- the run -----------------------------------------------------------------------------------------------------

check_nothing_left() {
  compose "$three" down -v >/dev/null 2>&1
  local left
  left=$(docker ps -aq --filter "label=com.docker.compose.project=$COMPOSE_PROJECT_NAME"
    docker volume ls -q --filter "name=^${COMPOSE_PROJECT_NAME}_"
    docker network ls -q --filter "name=^${COMPOSE_PROJECT_NAME}[-_]")
  [ -z "$left" ] || fail "down -v leaves $left"
  say "down -v leaves no container, volume or network"
}

if [ -n "$binary" ]; then eval "$(free_ports)"; else eval "$(sed -n 's/^\([A-Z]*_PORT_[123]=\)/export \1/p' docker/.env)"; fi
make_context
check_three
[ -n "$binary" ] || . docker/test-faults.sh
check_survives
check_refusals
check_all_in_one
check_nothing_left
say "passed"
