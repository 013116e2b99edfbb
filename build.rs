//! Compiles the lists of system calls to filters, so that no start has to.

#[path = "src/jail/compile.rs"]
mod compile;
#[path = "src/jail/list.rs"]
mod list;
#[path = "src/jail/lists.rs"]
mod lists;

use std::error::Error;
use std::fmt::Write;
use std::path::Path;

use list::List;

fn main() -> Result<(), Box<dyn Error>> {
    for source in ["build.rs", "src/jail/compile.rs", "src/jail/list.rs", "src/jail/lists.rs"] {
        println!("cargo::rerun-if-changed={source}");
    }
    let mut text = String::from(
        "/// The program of a list; `PROCESS` and `THREAD` stand in it for ids.\n\
         fn compiled(list: List) -> &'static [sock_filter] {\n    match list {\n",
    );
    for list in List::ALL {
        writeln!(text, "        List::{list:?} => &[")?;
        for instruction in compile::compile(list)? {
            writeln!(text, "            {instruction:?},")?;
        }
        text.push_str("        ],\n");
    }
    text.push_str("    }\n}\n");
    let directory = std::env::var_os("OUT_DIR").ok_or("Cargo names no OUT_DIR")?;
    Ok(std::fs::write(Path::new(&directory).join("filters.rs"), text)?)
}
