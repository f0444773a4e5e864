# shellcheck shell=bash
# Part of docker/test.sh: restarts, kills and cuts off nodes of the three clusters under load. Each call of the load is
# tried at one node and once again at another; a call that fails twice fails the test.

cargo build --quiet --locked -p trefoil-bench

endpoints() { # of CLUSTER
  echo "http://$(address "$1" 1),http://$(address "$1" 2),http://$(address "$1" 3)"
}

# Number of the node that leads the most shards.
leader() { # of CLUSTER
  trefoil status -o json --endpoints "$(endpoints "$1")" | python3 -c '
import json, sys
print(max(json.load(sys.stdin)["nodes"], key=lambda node: len(node["leads"]))["id"])'
}

load() { # CLUSTER SECONDS
  target/debug/trefoil-bench steady --service "${1,,}" --endpoints "$(endpoints "$1")" --seconds "$2"
}

# Runs a fault two seconds into a load, and prints what the callers saw.
under_load() { # WHAT CLUSTER SECONDS FAULT...
  local pid
  load "$2" "$3" >"$work/load" 2>&1 &
  pid=$!
  sleep 2
  "${@:4}"
  kill -0 "$pid" 2>/dev/null || fail "$1: the load ended before the fault did: $(cat "$work/load")"
  wait "$pid" || { cat "$work/load"; fail "$1: a call failed twice"; }
  say "$1, ${2,,} cluster: $(head -1 "$work/load")"
}

ready_after() { # CLUSTER NUMBER SINCE-MS
  local until=$((SECONDS + 60))
  until curl -fs -m 1 "http://$(address "$1" "$2")/readyz" >/dev/null; do
    [ "$SECONDS" -lt "$until" ] || fail "node $2 of $1 does not come back"
    sleep 0.05
  done
  say "$1 $2 is ready $(($(date +%s%3N) - $3)) ms later"
}

# As an upgrade does it: each container is stopped, and another takes its volume.
rolling_restart() { # CLUSTER NAME
  for number in 1 2 3; do
    local since
    since=$(date +%s%3N)
    compose "$three" stop "$2$number" >/dev/null 2>&1
    [ "$(docker inspect -f '{{.State.ExitCode}}' "$(container "$2$number")")" = 0 ] || fail "$2$number was not stopped in order"
    say "$2$number stopped after $(($(date +%s%3N) - since)) ms"
    since=$(date +%s%3N)
    compose "$three" up -d --no-deps --force-recreate "$2$number" >/dev/null 2>&1
    ready_after "$1" "$number" "$since"
    wait_healthy "$2$number"
  done
}

# The process dies; the engine starts it again.
kill_leader() { # CLUSTER NAME
  local number since
  number=$(leader "$1")
  since=$(date +%s%3N)
  kill -9 "$(docker inspect -f '{{.State.Pid}}' "$(container "$2$number")")"
  sleep 0.2
  ready_after "$1" "$number" "$since"
}

cut_leader_off() { # CLUSTER NAME
  local number network=${COMPOSE_PROJECT_NAME}_${1,,} id since
  number=$(leader "$1")
  id=$(container "$2$number")
  docker network disconnect "$network" "$id"
  sleep 8
  since=$(date +%s%3N)
  docker network connect --alias "$2$number" "$network" "$id"
  ready_after "$1" "$number" "$since"
}

for pair in LOCK:node QUEUE:queue CACHE:cache; do
  cluster=${pair%:*} name=${pair#*:}
  under_load "rolling restart" "$cluster" 40 rolling_restart "$cluster" "$name"
  under_load "kill -9 of a leader" "$cluster" 10 kill_leader "$cluster" "$name"
  under_load "network disconnect of a leader" "$cluster" 20 cut_leader_off "$cluster" "$name"
  wait_healthy "$name"{1,2,3}
done
