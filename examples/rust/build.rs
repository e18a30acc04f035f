// Compiles the proto file without protoc.
fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=../../proto/milo/discovery/v1/discovery.proto");
    let files = protox::compile(["milo/discovery/v1/discovery.proto"], ["../../proto"])?;
    tonic_prost_build::configure().build_server(false).compile_fds(files)?;
    Ok(())
}
