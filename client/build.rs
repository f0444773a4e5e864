//! Writes how each operation is sent, routed and answered.

use trefoil_codegen::{Contract, ContractError, client, write};

fn main() -> Result<(), ContractError> {
    println!("cargo:rerun-if-changed=../proto");
    write("operations.rs", client(&Contract::read("../proto")?))
}
