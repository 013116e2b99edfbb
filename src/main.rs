//! Parse, run, print the error chain once, exit code.

fn main() -> std::process::ExitCode {
    ember::cli::main()
}
