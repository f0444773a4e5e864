//! Writes how each operation is sent, routed and answered.

use trefoil_codegen::{Contract, Error, client, write};

fn main() -> Result<(), Error> {
    println!("cargo:rerun-if-changed=../proto");
    write("operations.rs", client(&Contract::read("../proto")?))
}
