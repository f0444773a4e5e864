//! Writes which function carries out which command.

use trefoil_codegen::{Contract, Error, core, write};

fn main() -> Result<(), Error> {
    println!("cargo:rerun-if-changed=../proto");
    write("dispatch.rs", core(&Contract::read("../proto")?))
}
