//! Compiles `proto/` with protox, so that no protoc has to be installed.

use prost::Message as _;
use prost_types::FileDescriptorSet;
use trefoil_codegen::{Contract, ContractError, proto, write};

fn main() -> Result<(), ContractError> {
    println!("cargo:rerun-if-changed=proto");
    let contract = Contract::read("proto")?;
    write("descriptors.bin", contract.descriptors())?;
    write("operations.rs", proto(&contract))?;

    // The core uses messages only: services exist with the feature `grpc`.
    tonic_prost_build::configure()
        .build_transport(false)
        .bytes(".")
        .btree_map(".")
        .client_mod_attribute(".", "#[cfg(feature = \"grpc\")]")
        .server_mod_attribute(".", "#[cfg(feature = \"grpc\")]")
        .compile_fds(FileDescriptorSet::decode(contract.descriptors())?)?;
    Ok(())
}
