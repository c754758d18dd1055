//! ```text
//! ioasid-example-nvme                   what the controller and its first namespace are
//! ioasid-example-nvme read FIRST COUNT  blocks to standard output
//! ioasid-example-nvme write FIRST       blocks from standard input, and a flush
//! ```

use std::io::{Read, Write};

use ioasid_example_nvme::{Command, Controller, Result};

fn main() -> Result<()> {
    let mut controller = Controller::open()?;
    let (about, namespace) = (controller.identify(1, 0)?, controller.identify(0, 1)?);
    let blocks = u64::from_le_bytes(namespace[..8].try_into()?);
    let block = 1usize << namespace[128 + 4 * usize::from(namespace[26] & 15) + 2];
    let mut queue = controller.queue(64)?;
    let memory = controller.memory(block)?;
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] => {
            let text = |range| String::from_utf8_lossy(&about[range]).trim_end().to_owned();
            println!("model      {}\nserial     {}\nfirmware   {}", text(24..64), text(4..24), text(64..72));
            println!("namespace  {blocks} blocks of {block} bytes");
        }
        ["read", first, count] => {
            let (first, count): (u64, u64) = (first.parse()?, count.parse()?);
            let mut bytes = vec![0; block];
            for at in first..first + count {
                controller.run(&mut queue, Command::read(1, at, 1, [memory.iova, 0]))?;
                memory.read(0, &mut bytes);
                std::io::stdout().write_all(&bytes)?;
            }
        }
        ["write", first] => {
            let mut bytes = Vec::new();
            std::io::stdin().read_to_end(&mut bytes)?;
            bytes.resize(bytes.len().next_multiple_of(block), 0);
            for (at, part) in (first.parse()?..).zip(bytes.chunks(block)) {
                memory.write(0, part);
                controller.run(&mut queue, Command::write(1, at, 1, [memory.iova, 0]))?;
            }
            controller.run(&mut queue, Command::flush(1))?;
        }
        _ => return Err("usage: ioasid-example-nvme [read FIRST COUNT | write FIRST]".into()),
    }
    Ok(())
}
