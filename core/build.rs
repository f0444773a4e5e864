//! Writes which function carries out which command.

use trefoil_codegen::{Contract, ContractError, core, write};

fn main() -> Result<(), ContractError> {
    println!("cargo:rerun-if-changed=../proto");
    write("dispatch.rs", core(&Contract::read("../proto")?))
}
