//! What is generated from a small contract, in files to read; and what is refused: whatever an operation leaves open.

use std::fs;
use std::io::Write as _;
use std::path::Path;

use goldenfile::Mint;
use trefoil_codegen::{
    Contract, ContractError, client, core, proto, reference, server, server_calls, server_services,
};

const FILES: [&str; 3] = ["gate.proto", "log.proto", "pipeline.proto"];

/// Reads the sample with the real options, after one replacement in it.
fn sample(from: &str, to: &str) -> Result<Contract, ContractError> {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let folder = tempfile::tempdir()?;
    let options = "trefoil/common/v1/operation.proto";
    fs::create_dir_all(folder.path().join(options).parent().expect("it lies in a folder"))?;
    fs::copy(here.join("../proto").join(options), folder.path().join(options))?;
    let mut replaced = 0;
    for file in FILES {
        let text = fs::read_to_string(here.join("tests/sample").join(file))?;
        replaced += text.matches(from).count();
        fs::write(folder.path().join(file), text.replace(from, to))?;
    }
    assert!(replaced > 0, "{from} is not there");
    Contract::read(folder.path())
}

/// The contract with this change is refused for this reason.
fn assert_noticed(from: &str, to: &str, why: &str) {
    let error = sample(from, to).err().unwrap_or_else(|| panic!("{why}: nobody noticed"));
    assert_eq!(error.to_string(), why);
}

#[test]
fn a_small_contract_becomes_code_that_can_be_read() {
    let contract = sample("syntax", "syntax").expect("it is whole");
    let mut mint = Mint::new("tests/golden");
    for (file, text) in [
        ("proto.rs", proto(&contract)),
        ("core.rs", core(&contract)),
        ("server.rs", server(&contract).expect("every operation has its place")),
        ("server_calls.rs", server_calls(&contract)),
        ("server_services.rs", server_services(&contract)),
        ("client.rs", client(&contract)),
        ("reference.md", reference(&contract)),
    ] {
        let mut golden = mint.new_goldenfile(file).expect("it can be written");
        golden.write_all(text.as_bytes()).expect("it can be written");
    }
}

#[test]
fn nothing_is_left_open() {
    const GATE: &str = "trefoil.lock.v1.GateService.";
    for (from, to, why) in [
        ("kind: KIND_QUERY, ", "", "GetGate does not say `kind`"),
        (
            " handling: HANDLING_COMPOSED, action: ACTION_USE_LOCK,",
            " action: ACTION_USE_LOCK,",
            "AwaitGate does not say `handling`",
        ),
        (
            "action: ACTION_READ_LOCKS, resource: RESOURCE_LOCK,",
            "resource: RESOURCE_LOCK,",
            "GetGate does not say `action`",
        ),
        ("resource: RESOURCE_NAMESPACE,\n", "\n", "WatchGates does not say `resource`"),
        (
            "ADMISSION_CLASS_STREAM",
            "ADMISSION_CLASS_UNSPECIFIED",
            "WatchGates does not say `admission`",
        ),
        ("idempotent: false,", "", "OpenGate does not say `idempotent`"),
        ("draws: true,", "", "OpenGate does not say `draws`"),
        (", session: SESSION_USE_RENEWS", "", "OpenGate does not say `session`"),
        ("request_id: true,", "", "OpenGate does not say `request_id`"),
        (
            "request_id: true",
            "request_id: false",
            "OpenGate contradicts trefoil.lock.v1.OpenGateRequest, which has field `request_id`",
        ),
        (
            "fence: false, idempotent: true",
            "fence: true, idempotent: true",
            "AwaitGate contradicts trefoil.lock.v1.AwaitGateRequest, which has no field `fence`",
        ),
        (
            "WAITING_AT_SHARD",
            "WAITING_NEVER",
            "AwaitGate waits exactly where its request has `wait_ms`",
        ),
        (
            "KIND_STREAM",
            "KIND_QUERY",
            "WatchGates is a stream exactly where its `kind` is STREAM or CARRIER",
        ),
        (
            "fence: false\n    };\n  }\n  // Tells",
            "fence: false, draws: false\n    };\n  }\n  // Tells",
            "GetGate says `draws`, which is of commands alone",
        ),
        (
            "resource: RESOURCE_LOCK, routing: ROUTING_LOCKS,\n      admission: ADMISSION_CLASS_RESERVED",
            "resource: RESOURCE_KEY, routing: ROUTING_LOCKS,\n      admission: ADMISSION_CLASS_RESERVED",
            "AwaitGate is done to a Key, and trefoil.lock.v1.AwaitGateRequest has no `key`",
        ),
    ] {
        assert_noticed(from, to, &format!("{GATE}{why}"));
    }
}

#[test]
fn every_operation_has_its_place_in_frames_and_in_the_log() {
    for (from, to, why) in [
        (
            "    trefoil.lock.v1.GetGateRequest get_gate = 3;\n",
            "",
            "GetGate needs a field of its name and type trefoil.lock.v1.GetGateRequest in trefoil.pipeline.v1.Call",
        ),
        (
            "    trefoil.lock.v1.AwaitGateResponse await_gate = 2;\n",
            "",
            "AwaitGate needs a field of its name and type trefoil.lock.v1.AwaitGateResponse in trefoil.pipeline.v1.Reply",
        ),
        (
            "    trefoil.lock.v1.OpenGateResponse open_gate = 1;\n    trefoil.lock.v1.GetGateResponse get_gate = 2;",
            "    trefoil.lock.v1.OpenGateResponse open_gate = 1;",
            "GetGate needs a field of its name and type trefoil.lock.v1.GetGateResponse in trefoil.internal.v1.Answer",
        ),
        (
            "trefoil.lock.v1.GetGateRequest get_gate = 1;",
            "CloseGate get_gate = 1 [(trefoil.common.v1.step) = {resource: RESOURCE_UNNAMED, admission: ADMISSION_CLASS_ORDINARY}];",
            "GetGate needs a field of its name and type trefoil.lock.v1.GetGateRequest in trefoil.internal.v1.Query",
        ),
    ] {
        assert_noticed(from, to, &format!("trefoil.lock.v1.GateService.{why}"));
    }
}

#[test]
fn a_step_says_whose_it_is() {
    for (from, to, why) in [
        ("\"WatchGates\"", "\"Nothing\"", "close_gate is of no RPC Nothing"),
        ("resource: RESOURCE_UNNAMED, ", "", "close_gate does not say `resource`"),
        (",\n      session: SESSION_USE_NAMES", "", "lose_gate does not say `session`"),
        (
            "await_gate = 2;\n    CloseGate",
            "await_gate = 2 [(trefoil.common.v1.step) = {resource: RESOURCE_LOCK}];\n    CloseGate",
            "await_gate says again what its RPC says",
        ),
    ] {
        assert_noticed(from, to, &format!("trefoil.internal.v1.Command.{why}"));
    }
}

#[test]
fn a_name_and_a_request_are_those_of_one_operation() {
    let another = "

service Other {
  rpc GetGate(Nothing) returns (GetGateResponse) {
    option (trefoil.common.v1.operation) = {
      kind: KIND_QUERY, handling: HANDLING_COMPOSED, action: ACTION_READ_LOCKS, resource: RESOURCE_CLUSTER,
      routing: ROUTING_NODE, admission: ADMISSION_CLASS_ORDINARY, waiting: WAITING_NEVER, request_id: false, fence: false
    };
  }
}

message Nothing {}
";
    let end = "message WatchGatesResponse {}";
    for (from, to, why) in [
        (
            "rpc WatchGates(WatchGatesRequest)",
            "rpc WatchGates(GetGateRequest)".to_owned(),
            "GateService.WatchGates shares its request with another RPC",
        ),
        (end, format!("{end}{another}"), "Other.GetGate shares its name with another RPC"),
    ] {
        assert_noticed(from, &to, &format!("trefoil.lock.v1.{why}"));
    }
}

#[test]
fn what_is_handed_on_is_of_one_shard() {
    let contract = sample("ROUTING_LOCKS", "ROUTING_SPREAD").expect("the contract is whole");
    let error = server(&contract).expect_err("no shard is named").to_string();
    assert_eq!(
        error,
        "trefoil.lock.v1.GateService.OpenGate is not of one shard: it needs a handler of its own"
    );
}
